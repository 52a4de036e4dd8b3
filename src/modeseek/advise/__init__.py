"""Which method, which data next, at what cost: a belief about the reward, rehearsals and a race.

What is known without a label (the pairs, the reward that is given, what candidates would do) makes a belief about
what every response is worth; each method's predicted gain is that belief applied to its own responses. Labels change
the belief. The same arithmetic serves synthetic worlds, in which it is validated, and language models.
"""
