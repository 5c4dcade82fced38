"""The best file for a size: a type for each group of tensors, chosen by what it costs the model's predictions.

run      the whole search, and the file
groups   which tensors share a type
probe    the divergence that types cost, in a model in memory
search   which types are measured, and which are chosen
speed    what types take on this machine
sizes    exact sizes of files before they are written
choice   the best types under a size
rivals   llama.cpp's own files of that size, one of which can be better
outcome  what was found, for people
state    what was measured, so that a search resumes and other sizes use it
"""
