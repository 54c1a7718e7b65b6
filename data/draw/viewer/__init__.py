"""The viewer: one self-contained HTML page for a video, its masks, its tracks and, with truth, its errors.

    with Page(folder / "street_view.html") as page:
        for frame in frames:
            page.add(image, semantic, track)

    python -m data.draw.viewer OUTPUT_FOLDER           the same for the folder of an inference

`page.py` writes the page, `coding.py` packs a frame, `errors.py` compares two label maps, `folders.py` reads an output
folder. The page's own source is `page.html`, `page.css` and the `.js` files beside them.

500 frames of the built-in world, with the overlay as mp4 (crf 18) of the same size beside them:
    640 x 192     page  7.6 MB, mp4  4.2 MB (1.8 times);  11 ms of one core a frame to write
    1920 x 576    page 26.5 MB, mp4 20.2 MB (1.3 times);  79 ms
"""

from data.draw.viewer.page import Page, ShownClass, inline, shown_classes

__all__ = ["Page", "ShownClass", "inline", "shown_classes"]
