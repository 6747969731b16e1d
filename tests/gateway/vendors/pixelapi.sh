# pixelapi.dev/docs/tunesapi.html and pixelapi.dev/docs, the curl samples that need nothing trained.
curl https://api.pixelapi.dev/v1/tunes/config
curl -X POST https://api.pixelapi.dev/v1/tunes/train \
  -H "Authorization: Bearer YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "sdxl",
    "trigger_word": "MYBRAND",
    "steps": 1000,
    "rank": 16
  }'
curl https://api.pixelapi.dev/v1/tunes/models \
  -H "Authorization: Bearer YOUR_API_KEY"
curl -X POST https://api.pixelapi.dev/v1/image/generate \
  -H "Authorization: Bearer YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -H "User-Agent: MyApp/1.0" \
  -d '{"model": "sdxl", "prompt": "A cute penguin on a beach, digital art"}'
