"""Asks Helm's engine about a chart: a request as JSON on stdin, the answer as JSON on stdout."""

import json
import sys

sys.path.insert(0, sys.argv[1])
import helm_python as helm  # noqa: E402

request = json.load(sys.stdin)
chart, values = request["chart"], request["values"]
answer = {"version": helm.helm_sdk_version(), "lint": helm.lint(chart, values, strict=True)}
try:
    with helm.Chart.load(chart) as loaded:
        answer["crds"] = [crd["data"] for crd in loaded.crds]
        loaded.validate_schema(values)
        answer["files"] = loaded.render(values, name=request["release"], namespace=request["namespace"])
except helm.HelmError as error:
    answer["error"] = str(error)
json.dump(answer, sys.stdout)
