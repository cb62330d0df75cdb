"""The grids of the model card's two snippets under its own libraries, run by test_card.py.

python card_grids.py FOLDER SIZES.json OUT.json: for each [width, height] the grid (rows and columns of patches) by the
processor alone and by qwen-vl-utils and then the processor, at the card's pixels.
"""

import json
import sys
from pathlib import Path

from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor

folder, sizes, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
processor = AutoProcessor.from_pretrained(folder, min_pixels=262144, max_pixels=262144)
grids = []
for width, height in sizes:
    image = Image.new("RGB", (width, height))
    first, _ = process_vision_info([{"role": "user", "content": [{"type": "image", "image": image}]}])
    both = [processor.image_processor(each, return_tensors="pt")["image_grid_thw"][0] for each in ([image], first)]
    grids.append([grid[1:].tolist() for grid in both])
out.write_text(json.dumps(grids))
