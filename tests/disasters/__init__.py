"""Disasters: whole runs of the real code under a simulated clock, network and disk, from one seed.

    python -m tests.disasters SEED                     replay one seed, shrink what fails, tell it as a story
    python -m tests.disasters --seeds N --home FOLDER  many seeds, resumable

clock.py     time and what will happen at a moment
disk.py      machines whose disks forget, tear, fill up and rot; simulated_os.py: the calls on them
network.py   a Grid that loses, delays, repeats and forges messages
learning.py  what institutions learn and measure, in microseconds
homes.py     the scenarios, the sites' files
faults.py    what can go wrong, and the plan of a seed; storm.py: the network's part of it
world.py     one run of a plan, from the first start to the end; playing.py: it, with the product in its hands
laws.py      what must hold after every event and at the end
planted.py   bugs that it must find
shrink.py    the fewest faults that still break a law
"""
