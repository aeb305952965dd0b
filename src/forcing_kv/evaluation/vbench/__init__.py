"""VBench, the public benchmark of text-to-video models: its prompts made into videos here, scored by its own evaluator.

What is generated is named and laid out as VBench expects it. What scores it is VBench itself, in an environment of its
own, because what it pins fits no other. Nothing of VBench is part of this package: the prompt suite is read from the
evaluator or from a file, and only the arithmetic that turns its sixteen scores into one is done here.
"""
