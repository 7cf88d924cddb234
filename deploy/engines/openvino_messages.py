"""What OpenVINO says of a model that it cannot read, in a sentence."""

import re

_PLACES = re.compile(r"(Exception from |Check '.*' failed at |FrontEnd API failed with |Summary:)")
_WHILE = re.compile(r"While validating ONNX node '<Node\((?P<kind>\w+)\): (?P<name>[^>]*)>':?\s*")
_REFUSED = re.compile(r"^-- (?P<kind>\S+?)(-\d+)? with a message:$")
_UNKNOWN = re.compile(r"No conversion rule found for operations?: (?P<kinds>.+)$")


def condense_message(text: str) -> str:
    """`text` without places in OpenVINO's source, and each operator that it refuses once.

    What is not of a known form comes back as its lines that say something, in one.
    """
    refused: dict[str, str] = {}
    said: list[str] = []
    current = None
    for line in map(str.strip, text.splitlines()):
        if unknown := _UNKNOWN.search(line):
            refused |= {kind.strip(): "" for kind in unknown["kinds"].split(",")}
        elif refusal := _REFUSED.match(line):
            current = refusal["kind"]
            refused.setdefault(current, "")
        elif line.startswith(("Summary:", "-- Conversion is failed for")):
            current = None
        elif rest := "" if _PLACES.match(line) else _WHILE.sub("", line):
            if current is None:
                said.append(rest)
            else:
                refused[current] = rest
    if not refused:
        return " ".join(said) or text.strip()
    kinds = "; ".join(f"{kind} ({why})" if why else kind for kind, why in refused.items())
    return f"it has no form of {len(refused)} kinds of operators: {kinds}".replace(
        "1 kinds of operators", "1 kind of operator"
    )
