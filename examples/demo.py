"""Sample from the committed Fashion-MNIST checkpoint in every direction, and write one picture of it all.

    python examples/demo.py --output demo.png

Rows: joint samples with their masks and labels; one image for each label given; images for given masks; labels and
masks read off given images. Works offline, on a CPU, in under a minute.
"""

import argparse
import time
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import torch

from mmdiff_pipelines import MultimodalMultitaskPipeline


CHECKPOINT = Path(__file__).parent.parent / "model_cards" / "fashion-mnist-joint"
COLUMNS = 10
SCALE, CAPTION = 3, 14
Cell = tuple[PIL.Image.Image, str]


def draw_cell(image: PIL.Image.Image, caption: str) -> PIL.Image.Image:
    """A picture enlarged, its caption below."""
    image = image.convert("RGB").resize((image.width * SCALE, image.height * SCALE), PIL.Image.Resampling.NEAREST)
    cell = PIL.Image.new("RGB", (image.width + 4, image.height + CAPTION + 4), "white")
    cell.paste(image, (2, 2))
    PIL.ImageDraw.Draw(cell).text((3, image.height + 3), caption, fill="black")
    return cell


def draw_section(title: str, rows: list[list[Cell]]) -> PIL.Image.Image:
    """Rows of cells under a title."""
    cells = [[draw_cell(*cell) for cell in row] for row in rows]
    width, height = cells[0][0].size
    section = PIL.Image.new("RGB", (width * COLUMNS, height * len(rows) + 18), "white")
    PIL.ImageDraw.Draw(section).text((3, 3), title, fill="navy")
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            section.paste(cell, (j * width, 18 + i * height))
    return section


def stack(sections: list[PIL.Image.Image]) -> PIL.Image.Image:
    width, height = sections[0].width, sum(section.height for section in sections)
    picture, top = PIL.Image.new("RGB", (width, height), "white"), 0
    for section in sections:
        picture.paste(section, (0, top))
        top += section.height
    return picture


def pairs(output, captions: list[str]) -> list[list[Cell]]:
    """A row of images with captions, and a row of their masks."""
    images = list(zip(output.images, captions, strict=True))
    return [images, [(mask, "") for mask in output.modalities["mask"]]]


def demonstrate(pipe: MultimodalMultitaskPipeline, steps: int, seed: int) -> tuple[PIL.Image.Image, float, float]:
    """The picture; how often the model reads off its own images the label they came with, jointly and given."""
    names = pipe.unet.modality_modules["label"].class_names
    generator = torch.Generator().manual_seed(seed)

    def run(**arguments):
        return pipe(batch_size=COLUMNS, num_inference_steps=steps, generator=generator, **arguments)

    def read_labels(images: list[PIL.Image.Image]) -> list[str]:
        return run(given={"image": images}, outputs=["label"]).modalities["label"]

    joint = run(discrete="draw_first", guidance_scale=2.0)
    by_label = run(given={"label": names}, guidance_scale=2.0)
    by_mask = run(given={"mask": by_label.modalities["mask"]}, guidance_scale=1.5)
    perceived = run(given={"image": by_mask.images})
    surest = perceived.confidences["label"].amax(1).tolist()
    captions = [f"{label[:9]} {p:.2f}" for label, p in zip(perceived.modalities["label"], surest, strict=True)]
    picture = stack(
        [
            draw_section("nothing given: image, label and mask together", pairs(joint, joint.modalities["label"])),
            draw_section("label given", pairs(by_label, names)),
            draw_section(
                "mask given (the masks above), image and label generated",
                [list(zip(by_mask.images, by_mask.modalities["label"], strict=True))],
            ),
            draw_section("image given (those above): label and mask in one call", pairs(perceived, captions)),
        ]
    )

    def agreement(images: list[PIL.Image.Image], labels: list[str]) -> float:
        return sum(a == b for a, b in zip(read_labels(images), labels, strict=True)) / len(labels)

    return picture, agreement(joint.images, joint.modalities["label"]), agreement(by_label.images, names)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(CHECKPOINT), help="a folder or a repo on the Hub")
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="the picture to write")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.perf_counter()
    pipe = MultimodalMultitaskPipeline.from_pretrained(args.checkpoint)
    picture, joint, given = demonstrate(pipe, args.num_inference_steps, args.seed)
    picture.save(args.output)
    print(f"label agreement: {joint:.0%} of joint samples, {given:.0%} where the label was given")
    print(f"{args.output.resolve()} written in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
