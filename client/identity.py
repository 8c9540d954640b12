"""What a node says about its institutions when a server asks who they are.

The handler sends this, and the guard makes it again and compares (client/release/guard.py): every value is a
fact of the site itself, so a reply to identify has no room for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casam_core.protocol.fingerprint import code_fingerprint
from casam_core.protocol.messages import IdentifyReply, IdentifyRequest, identify_statement
from casam_core.protocol.register import sign_as
from client.dp.paid_release import forecasts_of
from client.dp.plan import leaves_noisy
from client.institution import Institution


def identity_of(institutions: Sequence[Institution]) -> IdentifyReply:
    """The reply of a node that hosts these institutions. Raises DataError and PolicyError."""
    backbone = institutions[0].backbone if institutions else None
    return IdentifyReply(
        code=code_fingerprint(),
        backbone=backbone.digest if backbone else "",
        preprocessing=backbone.preprocessing if backbone else "",
        compute=backbone.compute.variant if backbone else "",
        institutions={institution.name: institution.holdings() for institution in institutions},
        policies={institution.name: institution.site.policy for institution in institutions},
        forecasts={
            institution.name: forecasts_of(institution)
            for institution in institutions
            if leaves_noisy(institution.site.policy.adapter)
        },
        simulated=any(institution.site.simulated for institution in institutions),
        mirrored=any(institution.site.mirror for institution in institutions),
    )


def signed(
    reply: IdentifyReply, request: IdentifyRequest, institutions: Sequence[Institution]
) -> IdentifyReply:
    """The reply, signed by every institution in it with the key that is registered for its name.

    The outbox adds them after the guard, so that nothing else can choose them. Raises RegisterError.
    """
    signatures = {}
    for institution in institutions:
        name, site = institution.name, institution.site
        said = identify_statement(name, request, reply)
        signatures[name] = sign_as(name, site.key, site.register, said)
    return replace(reply, signatures=signatures)
