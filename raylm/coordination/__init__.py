"""Who trains a run together, and what is kept of it: the hub, its rounds, its bodies and the run's record.

Nothing here knows torch or a model. `contract` says what a body and a driver may ask; `rounds` decides who is in a
generation, without I/O; `hub` carries that out; `coordinator` keeps the record.
"""
