"""What the name of a request's member says, however it is spelled: where what it names is kept upstream, whether it
chooses a model, and whether what is in it is content.

`KEPT` is the table of what is known; whatever else ends like an id is taken for one.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

RESPONSES = "/v1/responses/"
FILES = "/v1/files/"
_CONTAINERS = "/v1/containers/"
_CONVERSATIONS = "/v1/conversations/"
_BATCHES = "/v1/batches/"
_STORES = "/v1/vector_stores/"
_THREADS = "/v1/threads/"

# Spelled without `_`, as `_plain` does.
KEPT = {
    "previousresponseid": RESPONSES,
    "responseid": RESPONSES,
    "conversation": _CONVERSATIONS,
    "conversationid": _CONVERSATIONS,
    "file": FILES,
    "files": FILES,
    "fileid": FILES,
    "fileids": FILES,
    "inputfile": FILES,
    "inputfileid": FILES,
    "inputfileids": FILES,
    "outputfileid": FILES,
    "errorfileid": FILES,
    "trainingfile": FILES,
    "trainingfiles": FILES,
    "validationfile": FILES,
    "validationfiles": FILES,
    "fileuri": FILES,
    "vectorstore": _STORES,
    "vectorstoreid": _STORES,
    "vectorstoreids": _STORES,
    "container": _CONTAINERS,
    "containerid": _CONTAINERS,
    "containerids": _CONTAINERS,
    "batch": _BATCHES,
    "batchid": _BATCHES,
    "batchids": _BATCHES,
    "messagebatchid": "/v1/messages/batches/",
    "prompt": "/v1/prompts/",
    "promptid": "/v1/prompts/",
    "assistant": "/v1/assistants/",
    "assistantid": "/v1/assistants/",
    "thread": _THREADS,
    "threadid": _THREADS,
    "runid": _THREADS,
    "skillid": "/v1/skills/",
    "skillids": "/v1/skills/",
    "audio": "/v1/audio/",
    "voice": "/v1/audio/voices/",
    "voiceid": "/v1/audio/voices/",
    "video": "/v1/videos/",
    "videoid": "/v1/videos/",
    "uploadid": "/v1/uploads/",
    "evalid": "/v1/evals/",
    "agentid": "/v1/agents/",
    "libraryids": "/v1/libraries/",
    "cachedcontent": "/v1/cachedContents/",
    "finetuningjobid": "/v1/fine_tuning/jobs/",
    "jobid": "/v1/fine_tuning/jobs/",
}
"""What a member names, and the path under which that is kept: a key whose `paths` open it may name it."""

STEERING = "/account/"
STEERS = frozenset(
    (
        *("apibase", "apikey", "apitype", "apiversion", "baseurl", "upstream"),
        *("extraheaders", "defaultheaders", "headers", "extraquery", "proxy", "proxies", "httpproxy", "httpsproxy"),
        *("customllmprovider", "litellmcredentialname", "usercredentials", "credentials", "authorization"),
        *("organization", "organizationid", "project", "projectid", "azureadtoken", "azureadtokenprovider"),
        *("awsaccesskeyid", "awssecretaccesskey", "awssessiontoken", "awsrolename", "awsprofilename", "awsregionname"),
        *("vertexproject", "vertexaiproject", "vertexlocation", "vertexailocation", "vertexcredentials"),
        *("portkeyconfig", "virtualkey"),
    )
)
"""Members of a request itself by which gateways take another host, account or credential for it."""
OF_THE_REQUEST = frozenset(("extrabody", "litellmparams", "llmparams"))
"""Members whose own members some gateways take for the request's."""

# What ends in `id` and is the client's own, or of the same request.
_HARMLESS_IDS = (
    "callid",
    "useid",
    "customid",
    "userid",
    "sessionid",
    "requestid",
    "traceid",
    "spanid",
    "observationid",
    "correlationid",
    "generationid",
    "customerid",
    "tenantid",
    "clientid",
    "externalid",
    "appid",
    "deviceid",
    "turnid",
    "windowid",
    "connectorid",
    "installationid",
    "toolid",
    "modelid",
    "deploymentid",
)
_AN_ID = re.compile(r"(?i:.{2,}[_\- ]ids?)|.*[a-z](?:Ids?|IDs?)", re.DOTALL)

# Nothing in these chooses or names anything, whatever it is called.
_CONTENT = frozenset(
    (
        "metadata",
        "clientmetadata",
        "schema",
        "jsonschema",
        "inputschema",
        "outputschema",
        "arguments",
        "documents",
        "logitbias",
        "text",
        "encryptedcontent",
        "signature",
        "data",
        "embedding",
        "logprobs",
        "toplogprobs",
        "results",
        "annotations",
        "citations",
        "caller",
    )
)
# Where a conversation is: what is in it chooses no model.
_MESSAGES = frozenset(("messages", "input", "items", "system", "instructions", "content", "output"))
_CHOOSES = re.compile(
    r".*models?|.*model(?:id|ids|name|names|list|alias)|deployment(?:id|name)?|.*fallbacks?|route|preset", re.DOTALL
)
_LONGEST_NAME = 64


class Meaning(NamedTuple):
    """What a member's name says, however it is spelled: `path` of what it names, None for nothing; `known` where the
    table has it, and not only its ending."""

    plain: str
    chooses: bool
    path: str | None
    known: bool
    content: bool
    message: bool


@functools.lru_cache(maxsize=4096)
def _of_short(name: str) -> Meaning:
    spelled = name.partition("\0")[0].strip()  # there a parser in C ends it
    plain = "".join(spelled.split()).casefold().replace("_", "").replace("-", "")
    path, known = KEPT.get(plain), plain in KEPT
    if path is None and _AN_ID.fullmatch(spelled) and not plain.endswith(_HARMLESS_IDS):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", spelled).replace("-", "_").replace(" ", "_").lower()
        path = f"/v1/{words.rpartition('_')[0].rstrip('s')}s/"
    return Meaning(plain, bool(_CHOOSES.fullmatch(plain)), path, known, plain in _CONTENT, plain in _MESSAGES)


_OF_NO_API = Meaning("", False, None, False, False, False)


def meaning(name: str) -> Meaning:
    """What was read once is remembered, unless that could hold much: no API has names so long."""
    if len(name) > _LONGEST_NAME:
        name = name.partition("\0")[0].strip()
    return _of_short(name) if len(name) <= _LONGEST_NAME else _OF_NO_API
