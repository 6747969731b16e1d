"""Random IP-Adapters in the layout of published files, and an image encoder for them."""

from __future__ import annotations

from pathlib import Path

from tunes_dagster.families.catalog import AuxiliaryEntry

# Of the encoder: width of hidden states, of the embedding.
HIDDEN, EMBEDDING = 32, 24


def make_random_eyes(folder: Path, seed: int = 0) -> Path:
    """Write a `CLIPVisionModelWithProjection` for 32 x 32 pixels."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=EMBEDDING,
        )
        model = CLIPVisionModelWithProjection(config)
        for weight in model.parameters():  # a fresh CLIP says nearly the same of every picture
            if weight.ndim > 1:
                weight.data.mul_(4)
    model.save_pretrained(folder)
    return folder


def make_random_adapter(
    folder: Path, unet, base_id: str, fits: str, plus: bool = False, seed: int = 0
) -> AuxiliaryEntry:
    """Write an IP-Adapter that changes a UNet's pictures visibly, with its encoder, and return its entry."""
    import torch
    from diffusers.models.embeddings import IPAdapterPlusImageProjection
    from safetensors.torch import save_file

    from factory.train.faceadapter import cross_attentions

    width = unet.config.cross_attention_dim
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if plus:
            network = IPAdapterPlusImageProjection(HIDDEN, width, 64, depth=4, heads=1, num_queries=4)
            projection = {name: value.contiguous() for name, value in network.state_dict().items()}
            projection = {_published(name): value for name, value in projection.items()}
            for layer in range(4):
                halves = [projection.pop(f"layers.{layer}.0.to_{part}.weight") for part in "kv"]
                projection[f"layers.{layer}.0.to_kv.weight"] = torch.cat(halves)
        else:
            linear = torch.nn.Linear(EMBEDDING, 4 * width)
            projection = {
                "proj.weight": linear.weight.detach(),
                "proj.bias": linear.bias.detach(),
                "norm.weight": torch.ones(width),
                "norm.bias": torch.zeros(width),
            }
        state = {f"image_proj.{name}": value for name, value in projection.items()}
        for number, layer in enumerate(cross_attentions(unet)):
            shape = layer.to_k.weight.shape
            for part in ("k", "v"):
                state[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(shape) * 1.2
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter.safetensors")
    make_random_eyes(folder / "eyes")
    return AuxiliaryEntry(
        base_id=base_id,
        family="ipadapter",
        fits=fits,
        repo_id=str(folder),
        weights="adapter.safetensors",
        encoder="eyes",
        licence="none",
    )


def _published(name: str) -> str:
    """Return how published files call a part of the `plus` projection."""
    if not name.startswith("layers."):
        return name
    _, layer, rest = name.split(".", 2)
    for ours, theirs in (
        ("ln0", "0.norm1"),
        ("ln1", "0.norm2"),
        ("attn.to_out.0", "0.to_out"),
        ("attn.", "0."),
        ("ff.0", "1.0"),
        ("ff.1.net.0.proj", "1.1"),
        ("ff.1.net.2", "1.3"),
    ):
        if rest.startswith(ours):
            return f"layers.{layer}.{theirs}{rest[len(ours) :]}"
    raise ValueError(name)
