"""What runs by itself, one file each.

``tasks`` takes what transactions left to do and carries it out, again and again until it works. ``provisioning`` makes the world
match the state of one network at a time: *read* what should be, *retreat* (doors closed, records and addresses of lost
approvals removed), *apply* to the fabric, *listen*, *advance* (what now has address and door becomes Ready and gets its
records, in one transaction), *publish* the network's names. Each step may be repeated; killed between any two, the next
round ends in the same place.
"""
