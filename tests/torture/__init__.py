"""Torture: real replicas, a real store, every fault at random, and an oracle for every client.

    make torture SECONDS=120 SEED=1 TOPOLOGY=standalone|sentinel|cluster|all WORKERS=1|2

Payload = f(generation, n): whatever a client is sent, across all its connections, can be told to be the next event of
the one generation that it reads. Faults, requests and clients come from one seed; what happens between them is the
machine's business. So a seed plays the same faults at the same times against the same clients, as well as it can.

| module | what |
|---|---|
| `generation` | what an upstream sends for one request, by number; pure |
| `oracle` | what one client may see; pure |
| `timeline`, `judging` | what was broken when, and which ends and refusals that excuses; pure |
| `plan` | faults and requests out of a seed; pure |
| `bounds` | the replicas' settings, and the times that follow from them |
| `upstream` | the upstream: plays generations, counts and times every call |
| `wire`, `clients`, `sessions` | requests as EventSource, `fetch`, SDKs and `relay.client` send them |
| `lines` | TCP proxies: between a replica and its store, and in front of a replica |
| `stores` | a store of each topology, and what can happen to it |
| `replicas` | relay processes: killed, paused, drained, measured |
| `world`, `faults` | all of it together, and the schedule that is played on it |
| `run`, `report` | one run, its checks at the end, its figures |
"""
