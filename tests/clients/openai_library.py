"""Run by the Python that has OpenAI's library: uses the server at argv[1], prints what the library made of it.

argv[2] is a mask's file, argv[3] how many open requests a client may have.
"""

import base64
import json
import sys
import urllib.request
from pathlib import Path

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="any")
seen = {"version": openai.__version__, "models": [model.id for model in client.models.list()]}

extra = {"seed": 3, "num_inference_steps": 4}
answer = client.images.generate(model="gpt-image-1", prompt="a red apple", n=2, size="256x256", extra_body=extra)
seen["generation"] = [answer.size, answer.quality, [one.seed for one in answer.data], answer.usage.total_tokens]
apple = base64.b64decode(answer.data[0].b64_json)

extra = {"seed": "5", "num_inference_steps": 4}
mask = Path(sys.argv[2]).read_bytes()
answer = client.images.edit(image=[apple], mask=mask, prompt="an apple on blue", output_format="jpeg", extra_body=extra)
seen["edit"] = [answer.size, answer.output_format, base64.b64decode(answer.data[0].b64_json)[:3].hex(), answer.warnings]

# of an SDK that marks it as deprecated
answer = client.images.with_raw_response.create_variation(image=apple, response_format="url").parse()
seen["variation"] = answer.data[0].url

events = client.images.generate(
    model="gpt-image-1", prompt="a house", stream=True, partial_images=3, extra_body={"num_inference_steps": 20}
)
seen["events"] = [[type(event).__name__, event.type, len(event.b64_json) > 100] for event in events]

seen["errors"] = []
for wrong in ({"n": 9}, {"model": "none/such"}, {"background": "transparent"}, {"n": 9, "stream": True}):
    try:
        client.images.generate(**{"model": "gpt-image-1", "prompt": "x"} | wrong)
    except openai.APIStatusError as error:
        seen["errors"].append([type(error).__name__, error.param, error.code, bool(error.request_id)])


def send(method: str, path: str, fields: object = None) -> dict[str, str]:
    data = None if fields is None else json.dumps(fields).encode()
    request = urllib.request.Request(f"{sys.argv[1]}/v1/jobs{path}", data, {"Content-Type": "application/json"})
    request.method = method
    with urllib.request.urlopen(request) as answer:
        job: dict[str, str] = json.load(answer)
    return job


long = {"kind": "txt2img", "prompt": "a house", "num_inference_steps": 250, "num_outputs": 4}
jobs = [send("POST", "", long) for _ in range(int(sys.argv[3]))]
try:
    client.with_options(max_retries=0).images.generate(prompt="x")
except openai.APIStatusError as error:
    seen["full"] = [error.status_code, type(error).__name__, error.code]
for job in jobs:
    send("DELETE", f"/{job['id']}")

print(json.dumps(seen))
