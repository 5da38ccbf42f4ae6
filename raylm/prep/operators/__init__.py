"""Operators: the steps between reading and packing. Documents in, documents out, and a record of what each one did.

Each kind is one file that holds its settings, its code and its `OPERATOR`. A `Barrier` is an operator that has to see
what all documents have in common before it decides about one.
"""

from raylm.prep.operators.barrier import Barrier, Gatherer
from raylm.prep.operators.base import Operator, applied, in_batches, per_document
from raylm.prep.operators.build import barrier_of, fit, operator_of, operator_rows, register_operator, resources_for
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.record import OperatorRecord
from raylm.prep.operators.resources import Resources

__all__ = [
    "Barrier",
    "Gatherer",
    "Operator",
    "OperatorContext",
    "OperatorKind",
    "OperatorRecord",
    "Resources",
    "applied",
    "barrier_of",
    "fit",
    "in_batches",
    "operator_of",
    "operator_rows",
    "per_document",
    "register_operator",
    "resources_for",
]
