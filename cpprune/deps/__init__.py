"""Private and undocumented interfaces of dependencies: every use of one is a function here.

One module for each dependency. A function says what it uses, why nothing public will do, and what to do
once it is gone; its test in tests/deps fails with the new version that changes it.
"""
