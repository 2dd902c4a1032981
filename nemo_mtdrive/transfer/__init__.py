"""The data plane: episodes from rollout workers to training ranks, images once a node, weights back. No pickle.

    segments  a run's folder in shared memory: who is alive, what is left over
    images    content-addressed image store; pixels as Qwen2.5-VL wants them (patches: the CPU's loop for it)
    fetch     which images a receiver lacks, and who of its node asks for them
    wire      Episode <-> checked frames
    messages  the envelope of every message: version, checksum, plain values
    link      the two protocols, and the factory that picks a wire (shm, zmq, baseline)
    stream    worker side of IPSS: serialise and send while others generate
    collect   trainer side: the episodes of a step, exactly once, as groups
    tensors   the step's device tensors, shared by the phases (IPTC)
    weights   full HF-named weights, trainer to engines
"""
