"""The steps between reading and packing: documents in, documents out, and a record of what each one dropped.

Most steps look at one document at a time (`Step`). A `Barrier` has to see what all documents have in common first.
"""

from raylm.prep.operators.barrier import Barrier, Gatherer
from raylm.prep.operators.build import barrier_of, fit, operator_of
from raylm.prep.operators.record import OperatorRecord, Step, applied

__all__ = ["Barrier", "Gatherer", "OperatorRecord", "Step", "applied", "barrier_of", "fit", "operator_of"]
