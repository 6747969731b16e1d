# docs.astria.ai, "Create a tune", the first curl sample: Flux, with files and a prompt that asks for better faces and size.
curl -X POST -H "Authorization: Bearer $API_KEY" https://api.astria.ai/tunes \
          -F "tune[title]=Jane Doe - UUID - 1234-6789-1234-56789" \
          -F "tune[name]=woman" \
          -F "tune[base_tune_id]=1504944" \
          -F "tune[model_type]=lora" \
          -F "tune[token]=ohwx" \
          -F "tune[images][]=@1.jpg" \
          -F "tune[images][]=@2.jpg" \
          -F "tune[images][]=@3.jpg" \
          -F "tune[images][]=@4.jpg" \
          -F "tune[prompts_attributes][][text]=ohwx woman holding flowers" \
          -F "tune[prompts_attributes][][inpaint_faces]=true" \
          -F "tune[prompts_attributes][][super_resolution]=true"
