"""etcd for woodfrog: the only importer of the etcd client.

Keys are text, values small bytes. Writes that matter are guarded transactions; watches and registrations outlive every
break, restart and compaction.
"""

from woodfrog.coordination.election import Election, Leader, Term, leaders
from woodfrog.coordination.lease import Lease
from woodfrog.coordination.registration import Registration
from woodfrog.coordination.session import Session
from woodfrog.coordination.values import Change, Delete, Item, Listing, Put

__all__ = [
    "Change",
    "Delete",
    "Election",
    "Item",
    "Leader",
    "Lease",
    "Listing",
    "Put",
    "Registration",
    "Session",
    "Term",
    "leaders",
]
