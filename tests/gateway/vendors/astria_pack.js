// docs.astria.ai, "Create a tune from a pack", as JSON with addresses of pictures.
const API_KEY = 'YOUR_API_KEY';
const options = {
  method: 'POST',
  headers: { Authorization: 'Bearer ' + API_KEY, 'Content-Type': 'application/json' },
  body: JSON.stringify({
    tune: {
      title: 'John Doe - UUID - 1234-6789-1234-56789',
      name: 'man',
      callback: 'https://optional-callback-url.com/webhooks/astria?user_id=1',
      characteristics: { eye_color: 'blue eyes' },
      prompt_attributes: { callback: 'https://optional-callback-url.com/webhooks/astria?user_id=1' },
      image_urls: ['https://i.imgur.com/HLHBnl9.jpeg', 'https://i.imgur.com/HLHBnl9.jpeg', 'https://i.imgur.com/HLHBnl9.jpeg', 'https://i.imgur.com/HLHBnl9.jpeg']
    }
  })
};
fetch('https://api.astria.ai/p/260/tunes', options)
  .then(response => response.json())
  .then(data => console.log(JSON.stringify(data)));
