"""Work without a network: check a machine, and carry edge to it in a bundle.

doctor    reports versions, devices and memory, and whether a model fits
ready     tries everything that edge needs, without a network
manifest  defines the contents of a bundle, byte by byte
wheels    makes the wheels of edge and its dependencies
bundle    writes a bundle: one tar file
unbundle  checks, unpacks and installs a bundle
"""
