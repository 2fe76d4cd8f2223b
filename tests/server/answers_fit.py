"""Whether what a server answered, and told, is what its /openapi.json says. answers_fit.py FILE.json"""

import json
import re
import sys

from jsonschema import Draft202012Validator

given = json.load(open(sys.argv[1]))
document = given["document"]
components = document["components"]
for name, schema in components["schemas"].items():
    Draft202012Validator.check_schema(schema)

faults, asked = [], set()


def check(what, schema, value):
    # References in a schema of the document are into the document.
    validator = Draft202012Validator({**schema, "components": components})
    for error in sorted(validator.iter_errors(value), key=str):
        deepest = min(error.context, key=lambda one: -len(one.absolute_path), default=error)
        faults.append(f"{what}: {list(deepest.absolute_path)}: {deepest.message[:400]}")


def address(path):
    """The address of the document that is the path, the one with fewest names in it."""
    path = path.split("?")[0]
    fits = [one for one in document["paths"] if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one), path)]
    return min(fits, key=lambda one: one.count("{"), default=None)


for answer in given["answers"]:
    method, status, value = answer["method"].lower(), answer["status"], answer["answer"]
    what = f"{answer['method']} {answer['path']} {status}"
    found = address(answer["path"])
    operation = document["paths"].get(found, {}).get(method)
    if status >= 400:
        # Also where there is nothing, or not with this method.
        check(what, {"$ref": "#/components/schemas/Failure"}, value)
    elif operation is None:
        assert answer["path"].split("?")[0] == "/openapi.json" or "gradio" in answer["path"], what
    else:
        content = operation["responses"]["2XX"].get("content", {})
        asked.add((method, found))
        if "application/json" in content:
            check(what, content["application/json"]["schema"], value)
        elif not content and value != "":
            faults.append(f"{what}: has a body, of which the document knows nothing: {value}")
for event in given["events"]:
    check(f"event {event.get('kind')}", {"$ref": "#/components/schemas/Event"}, event)

if given["all"]:
    wanted = {
        (method, path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "application/json" in operation["responses"]["2XX"].get("content", {})
    }
    faults += [f"nobody asked {method} {path}" for method, path in sorted(wanted - asked)]
sys.exit("\n".join(faults[:30]) if faults else 0)
