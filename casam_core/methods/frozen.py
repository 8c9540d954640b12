"""Nothing is learned: the frozen backbone."""

from casam_core.methods.base import Method

METHOD = Method("The frozen backbone; nothing is learned.", learns=False)
