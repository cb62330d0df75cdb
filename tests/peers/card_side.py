"""What the model card's snippet does with a folder, run under the card's transformers 4.57.1 by test_card.py.

python card_side.py FOLDER OUT: reads OUT/picture.png and OUT/question.txt; writes what the model saw and said to
OUT/text.safetensors and OUT/image.safetensors, and the checkpoint as 4.57.1 saves it to OUT/saved.
"""

import sys
from pathlib import Path

import torch
import transformers
from qwen_vl_utils import process_vision_info
from safetensors.torch import save_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

folder, out = sys.argv[1], Path(sys.argv[2])
assert transformers.__version__ == "4.57.1", transformers.__version__
torch.set_num_threads(1)
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, device_map="auto")
processor = AutoProcessor.from_pretrained(folder)
question = {"type": "text", "text": (out / "question.txt").read_text()}
picture = {"type": "image", "image": f"file://{out / 'picture.png'}"}
for name, content in (("text", [question]), ("image", [picture, question])):
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images, videos = process_vision_info(messages)
    inputs = processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    written = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    tensors = {**inputs, "logits": logits, "written": written[:, inputs["input_ids"].shape[1] :]}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / f"{name}.safetensors")
model.save_pretrained(out / "saved")
processor.save_pretrained(out / "saved")
print("done")
