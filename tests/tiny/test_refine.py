"""More training of the VAE: strange pictures, a decoder sharpened alone, latents that belong to their encoder."""

from __future__ import annotations

import numpy as np
import pytest

from factory.train import decoder, refine, unet, vae
from tunes_dagster.tiny.world import picture


@pytest.fixture(scope="module")
def pictures():
    return np.stack([np.asarray(picture(i)[0]) for i in range(4)])


@pytest.fixture
def small():
    import torch

    torch.manual_seed(0)
    return vae.build((4, 4, 8, 8)), decoder.critic()


def test_one_flat_area_gets_another_color(pictures):
    crop = np.full((8, 8, 3), (200, 40, 40), dtype=np.uint8)
    crop[:, 4:] = (20, 20, 220)
    changed = refine.recolored(crop, np.random.default_rng(3))
    sides = [np.array_equal(changed[:, :4], crop[:, :4]), np.array_equal(changed[:, 4:], crop[:, 4:])]
    assert sorted(sides) == [False, True]
    assert len(np.unique(changed.reshape(-1, 3), axis=0)) == 2  # it stays flat


def test_other_palettes_and_shapes_keep_size_and_kind(pictures):
    crop = pictures[0, 20:84, 20:84]
    for change in (refine.repainted, refine.pasted, refine.recolored):
        changed = change(crop, np.random.default_rng(1))
        assert changed.shape == crop.shape and changed.dtype == np.uint8
        assert not np.array_equal(changed, crop)


def test_only_untouched_crops_count_as_the_worlds_own(pictures):
    x, own = refine.batch(pictures, pictures, np.random.default_rng(0), 24)
    assert x.shape == (24, 3, 64, 64) and 0 < own.sum() < 24
    seen = ((x.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8)

    def drawn(crop):
        windows = np.lib.stride_tricks.sliding_window_view(pictures, (64, 64), axis=(1, 2))
        return bool((windows == crop.transpose(2, 0, 1)).all(axis=(-3, -2, -1)).any())

    assert all(drawn(crop) for crop in seen[own][:3])


def test_the_way_from_the_old_latents_is_counted_for_own_crops_only(small, pictures):
    import copy

    net, _ = small
    x, _ = refine.batch(pictures, pictures, np.random.default_rng(0), 4)
    old = copy.deepcopy(net)
    for weight in old.parameters():
        weight.data += 0.05

    def loss(own):
        import torch

        torch.manual_seed(1)
        return refine.loss_of(net, old, x, np.full(4, own), np.random.default_rng(2)).item()

    assert loss(True) > loss(False)


def test_the_decoders_loss_does_not_reach_the_critic(small, pictures):
    import torch

    net, critic = small
    net.encoder.requires_grad_(False)
    x, _ = refine.batch(pictures, pictures, np.random.default_rng(0), 2)
    decoder.loss_of(net, critic, x, torch.randn(2, 8, 8, 8)).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in net.decoder.parameters())

    fooled = decoder.frozen(critic, x)[-1].mean()
    assert not fooled.requires_grad
    assert all(weight.requires_grad for weight in critic.parameters())


def test_each_encoder_has_its_own_latents(small, tmp_path):
    net, _ = small
    net.register_to_config(scaling_factor=0.5)
    first = unet.cache_latents(tmp_path, net, 4)
    again = unet.cache_latents(tmp_path, net, 4)
    for weight in net.encoder.parameters():
        weight.data += 0.05
    other = unet.cache_latents(tmp_path, net, 4)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    for weight in net.decoder.parameters():
        weight.data += 0.05
    assert np.array_equal(unet.cache_latents(tmp_path, net, 4), other)


def test_a_vae_with_more_channels_draws_as_before(small, pictures):
    import torch

    net, _ = small
    more = refine.grown(net.eval(), 12).eval()
    x, _ = refine.batch(pictures, pictures, np.random.default_rng(0), 2)
    with torch.inference_mode():
        before, after = net.encode(x).latent_dist.mean, more.encode(x).latent_dist.mean
        torch.testing.assert_close(after[:, :8], before)
        torch.testing.assert_close(more.decode(after).sample, net.decode(before).sample)
    assert after.shape[1] == 12 and after[:, 8:].std() > 0


def test_a_unet_with_more_channels_predicts_as_before():
    import torch

    from factory.train.text import build_tokenizer

    tokenizer = build_tokenizer()
    old = unet.Base(tokenizer, 8, (32, 32, 32))
    pipe = unet.pipeline(old, vae.build((4, 4, 8, 8)))
    new = unet.Base(tokenizer, 12, (32, 32, 32))
    new.take(pipe)
    x, rest = torch.randn(1, 12, 16, 16), torch.randn(1, 24, 192)
    added = {"text_embeds": torch.randn(1, 128), "time_ids": torch.full((1, 6), 128.0)}

    def predicted(base, latents):
        with torch.inference_mode():
            found = base.parts["unet"](latents, 500, encoder_hidden_states=rest, added_cond_kwargs=added)
        return found.sample

    torch.testing.assert_close(predicted(new, x)[:, :8], predicted(old, x[:, :8]))
    assert not predicted(new, x)[:, 8:].any()


def test_a_guess_is_the_picture_when_the_denoiser_is_right(monkeypatch):
    import torch

    from factory.train.text import build_tokenizer

    base = unet.Base(build_tokenizer(), 8, (32, 32, 32))
    x, noise = torch.randn(2, 3, 8, 16, 16)
    t, ids = torch.tensor([20, 200, 390]), torch.ones(3, 24, dtype=torch.int64)
    a = base.alphas[t][:, None, None, None]
    right = a.sqrt() * noise - (1 - a).sqrt() * x
    monkeypatch.setattr(base, "_velocity", lambda noisy, *_: right)
    torch.testing.assert_close(base.guess(x, ids, t, noise), x, rtol=1e-4, atol=1e-4)


def test_guesses_are_of_the_places_they_are_cropped_with(small, pictures, tmp_path):
    from factory.train.text import build_tokenizer

    net, _ = small
    net.register_to_config(scaling_factor=0.5)
    base = unet.Base(build_tokenizer(), 8, (32, 32, 32))
    found = decoder.guesses(tmp_path, net.eval(), unet.pipeline(base, net), 4)
    assert found.shape == (4, 8, 16, 16) and np.isfinite(found).all()
    marked = np.broadcast_to(np.arange(16)[None, None, :, None], (4, 8, 16, 16))
    rows = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None, None], (4, 128, 128, 3))
    x, latents = decoder.guessed(rows, marked, np.random.default_rng(0), 6)
    assert np.array_equal(((x[:, 0, ::8, 0] + 1) * 127.5).round().numpy() / 8, latents[:, 0, :, 0].numpy())
