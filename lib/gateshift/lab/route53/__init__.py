"""Route 53 for the lab: moto's server, with the behaviour of the real service where moto differs.

moto answers everything that reads zones. Changes are answered here (:mod:`.batch`), because moto applies
part of a refused batch, accepts any weight, mixes simple and weighted records, deletes by set identifier
across names, and is INSYNC at once.
"""
