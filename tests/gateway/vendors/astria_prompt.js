// docs.astria.ai, "Create a prompt", the Node.js sample.
const API_KEY = 'YOUR_API_KEY';
const API_URL = 'https://api.astria.ai/tunes/1/prompts';

let formData = new FormData();
formData.append('prompt[text]', 'a painting of ohwx man in the style of Van Gogh');
formData.append('prompt[negative_prompt]', 'old, blemish, wrinkles, mole');
formData.append('prompt[super_resolution]', 'true');
formData.append('prompt[face_correct]', 'true');
formData.append('prompt[callback]', 'https://optional-callback-url.com/to-your-service-when-ready?prompt_id=1');

fetch(API_URL, {
  method: 'POST',
  headers: { Authorization: 'Bearer ' + API_KEY },
  body: formData
})
  .then(response => response.json())
  .then(data => console.log(JSON.stringify(data)));
