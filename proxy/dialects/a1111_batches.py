"""AUTOMATIC1111's batches: how many images there are, and what each one of several init images becomes."""

import secrets
from collections.abc import Mapping, Sequence

from proxy.dialects.a1111_fields import read_whole
from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation


def read_count(fields: Translation, images: Sequence[str | bytes]) -> None:
    """The number of results. Raises Refused 422 for more init images than a batch has.

    Args:
        images: the init images. Of several, each starts one image of a batch, and there are as many in a batch.
    """
    size, batches = read_whole(fields, "batch_size", 1), read_whole(fields, "n_iter", 1)
    name = "batch_size x n_iter"
    if len(images) > 1:
        if len(images) > size:
            sentence = f"init_images has {len(images)} images for a batch_size of {size}: send as many, or fewer."
            raise Refused(422, sentence, "init_images")
        size, name = len(images), "init_images x n_iter"
    fields.put("num_outputs", name, str(size * batches))


def check_count(fields: Translation, most: int) -> None:
    """Raises Refused 422 for a number of results that natively one request cannot have."""
    count = int(fields.native["num_outputs"])
    if not 1 <= count <= most:
        name = fields.names["num_outputs"]
        raise Refused(422, f"{name} must be a whole number from 1 to {most}, not {count}.", "n_iter")


def of_each(native: Mapping[str, str | bytes], images: Sequence[str | bytes]) -> list[dict[str, str | bytes]]:
    """The native fields of each image: image i starts from init image i, in each batch anew, and has its own seed."""
    count = int(native["num_outputs"])
    counts_on = "variation_seed" if "variation_strength" in native else "seed"
    # what is random is drawn here, once for all
    seeds = {name: int(native.get(name) or 1 + secrets.randbelow(2**32 - count)) for name in ("seed", counts_on)}
    return [
        {
            **native,
            **{name: str(seed + i * (name == counts_on)) for name, seed in seeds.items()},
            "init_image": images[i % len(images)],
            "num_outputs": "1",
        }
        for i in range(count)
    ]
