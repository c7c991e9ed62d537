"""Why a row of the benchmark may be missed, and what it would take, by the row's `why`.

Shown beside the figure where a row is missed, and nowhere else. Each says what a profile has found; one that no longer
holds is taken out or written anew with the commit that changes it.
"""

REASONS = {
    "cpu": (
        "Some 45 % of it is the kernel's `read`, `write` and wake-ups, for the store's round trip, too: more than "
        "all that nginx does. The rest is Python between two sockets, some 28 calls for an event, none of which has "
        "a tenth. At 300 streams a flush carries about four events; at 600 it carries more. It would take the path "
        "from socket to socket in a compiled language: mypyc over the eleven hot modules, as they stand, gives 7 %."
    ),
    "store_cpu": (
        "One script for each flush and stream: at 300 streams a flush carries about one event of each, so the call is "
        "paid for by few. It would take scripts that carry many streams at once, which Redis Cluster forbids across "
        "slots, or waiting for more events, which costs latency."
    ),
    "latency": (
        "An event waits for the flush before it and for the store's answer: it is shown only when it is written. It "
        "would take showing events before they are safe."
    ),
    "first": (
        "A stream is created in the store before its first event is shown, one round trip more than a proxy has, and "
        "what begins a stream is Python: see the CPU of a stream begun and ended."
    ),
    "unpaced": "One event costs what it costs in Python (see CPU per event); more cores are more workers.",
    "scale": "More streams at the same rate mean fewer events of each in a flush.",
    "begin": (
        "Some 1,600 calls of functions for each stream, none of which stands out: the interpreter takes three "
        "quarters of the CPU, the kernel an eighth. At 200 a second each of a stream's ten turns of the loop has "
        "only its own work; 300 at once share them, and cost less though they connect twice. Heads, JSON, answers "
        "and the store's replies are read in C already; what is between them (routing, the claim, the log, tasks, "
        "time limits, metrics, two lines in the log) is Python. It would take that in a compiled language."
    ),
    "burst": (
        "The price of a beginning times the number: whoever comes last of N at once waits for the work of all before, "
        "and a core does one thing at a time. Of a thousand at once nearly all of it is what a stream costs in any "
        "case, to connect to the client and to the upstream the rest. Whether 1, 2, 4 or 8 begin in one turn of the "
        "loop makes no more than 5 % of difference. It would take a cheaper beginning, or more workers."
    ),
    "neighbours": (
        "What is large passes through one event loop and one store. An event of 3 MB takes 6 ms of the relay's loop, "
        "to be parsed, packed, sent and written whole, and 12 ms of the store, which answers nobody else meanwhile. It "
        "would take events in parts in the log, too."
    ),
    "fidelity": "It must not be missed: look at the errors below and file a bug.",
    "idle": (
        "A live stream is a request, an answer, a producer, a feed, a reader and two connections, each with its "
        "Python objects. nginx has two connections and one request, in C. It would take fewer tasks and objects."
    ),
    "bytes": "Each event is an entry of its own in the stream, with a header, and its text is new bytes in any case.",
    "churn": (
        "The allocator keeps what the first streams needed, and takes more until it has seen its largest moment: the "
        "growth ends by itself."
    ),
    "resume": "The log is read in pages of 256 events over one connection.",
    "fleet": "All readers share one core, and the store's answers are copied, checked and framed in Python: a million "
    "events in three seconds are 3 µs for each.",
}
