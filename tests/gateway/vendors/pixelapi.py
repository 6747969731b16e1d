# pixelapi.dev/docs/tunesapi.html, the Python sample: create, upload, wait, infer.
import time

import requests

API_KEY = "YOUR_API_KEY"
BASE = "https://api.pixelapi.dev/v1/tunes"
headers = {"Authorization": f"Bearer {API_KEY}"}

job = requests.post(f"{BASE}/train", headers=headers, json={
    "model": "sdxl",
    "trigger_word": "ohwx",
    "steps": 1000,
    "rank": 16,
}).json()

files = [("images", open(f"image{n}.jpg", "rb")) for n in range(1, 6)]
requests.post(f"https://api.pixelapi.dev{job['upload_url']}", files=files)

while True:
    status = requests.get(f"{BASE}/{job['job_id']}", headers=headers).json()
    if status["status"] in ("completed", "failed"):
        break
    time.sleep(30)

result = requests.post(f"{BASE}/infer", headers=headers, json={
    "tune_id": status.get("tune_id", "lora_xyz"),
    "prompt": "a photo of ohwx on a beach",
    "num_images": 2,
}).json()
print(result)
