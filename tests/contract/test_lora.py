"""A LoRA export of verl becomes ordinary weights that compute what the adapted model computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_models import ARCHITECTURES, small_model

from tagpr_rl.types import TagprError

pytestmark = [pytest.mark.torch]


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_folder_computes_the_adapted_model_s_logits(
    tmp_path: Path, tied: bool, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tagpr_rl.backend.trainer import lora

    base = small_model(family, 64, tied=tied)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.arange(12)[None]
    wanted = adapted(ids).logits
    bare = base.save_pretrained  # as fsdp_checkpoint_manager.py does: the PEFT module's names, the plain config
    bare(tmp_path, state_dict={name: tensor.clone() for name, tensor in adapted.state_dict().items()})
    monkeypatch.setattr(lora, "SHARD_BYTES", 20_000)  # several shards
    assert lora.merge_export(tmp_path, 12 / 4) == 2 * 7
    merged, facts = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not facts["missing_keys"] and not facts["unexpected_keys"]
    assert torch.allclose(merged.eval()(ids).logits, wanted, atol=1e-5)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    with pytest.raises(TagprError, match="no adapter to merge"):
        lora.merge_export(tmp_path, 3.0)
