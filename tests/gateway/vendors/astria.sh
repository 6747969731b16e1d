# docs.astria.ai, "Create a tune", the curl sample with files.
curl -X POST -H "Authorization: Bearer $API_KEY" https://api.astria.ai/tunes \
  -F tune[title]="John Doe - UUID - 1234-6789-1234-56789" \
  -F tune[name]=man \
  -F tune[branch]="fast" \
  -F tune[callback]="https://optional-callback-url.com/webhooks/astria?user_id=1&tune_id=1" \
  -F tune[base_tune_id]=690204 \
  -F tune[token]=ohwx \
  -F "tune[prompts_attributes][0][text]=ohwx man on space circa 1979 on cover of time magazine" \
  -F tune[prompts_attributes][0][callback]="https://optional-callback-url.com/webhooks/astria?user_id=1&prompt_id=1&tune_id=1" \
  -F "tune[images][]=@1.jpg" \
  -F "tune[images][]=@2.jpg" \
  -F "tune[images][]=@3.jpg" \
  -F "tune[images][]=@4.jpg"
