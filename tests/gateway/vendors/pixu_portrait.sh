# pixu.ai/pixu/apidoc, the curl sample of txt2img_strict_portrait.
curl -X POST https://pixu.ai/pixu/api/txt2img_strict_portrait \
  -H "Content-Type: application/json" \
  -d '{"api_key":"my_api_key", \
       "app_uid":"api", \
       "model_uid":"upose_de2d19bbb30703a45df8d0366ec49099", \
       "model_weight":1.0, \
       "positive":"portrait, natural light", \
       "negative":"(big hands, un-detailed skin, semi-realistic)", \
       "resolution":"512,768", \
       "callback_url":"https://my-site.com/callback_txt2img/?request_uid=" \
     }'
