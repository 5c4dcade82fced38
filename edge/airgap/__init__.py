"""Work without a network: what a machine has, what a bundle carries.

doctor    versions, devices, memory, and whether a model fits
ready     tries everything that edge needs without a network
manifest  the contents of a bundle, byte by byte
wheels    the wheels of edge and its dependencies
bundle    writes a bundle: one tar file
unbundle  checks, unpacks and installs a bundle
"""
