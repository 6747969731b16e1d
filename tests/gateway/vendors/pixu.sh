# pixu.ai/pixu/apidoc, the curl sample of create_model, with the page's backslashes inside the JSON.
curl -X POST https://pixu.ai/pixu/api/create_model \
  -H "Content-Type: application/json" \
  -d '{"api_key":"my_api_key", \
       "app_uid":"api", \
       "name":"My Model", \
       "face_base64" : "base64 encoded cropped face", \
       "height" : 192, \
       "baseline" : 1, \
       "callback_url" : "https://my-site.com/callback_create_model/?model_uid=" \
     }'
