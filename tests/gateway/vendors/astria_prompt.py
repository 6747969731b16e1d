# docs.astria.ai, "Create a prompt", the Python sample.
import requests

API_URL = "https://api.astria.ai/tunes/1/prompts"
API_KEY = "YOUR_API_KEY"
headers = {"Authorization": f"Bearer {API_KEY}"}

data = {
    "prompt[text]": "a painting of ohwx man in the style of Van Gogh",
    "prompt[negative_prompt]": "old, blemish, wrinkles, mole",
    "prompt[super_resolution]": True,
    "prompt[face_correct]": True,
    "prompt[callback]": "https://optional-callback-url.com/to-your-service-when-ready?prompt_id=1",
}
response = requests.post(API_URL, headers=headers, data=data)
print(response.json())
