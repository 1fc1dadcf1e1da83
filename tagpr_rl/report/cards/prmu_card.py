"""The model card of a personalization reward model: what it reads, what it was made from, what it measured."""

from __future__ import annotations

from collections.abc import Mapping

from tagpr_rl.config import PrmuStage, Recipe

_USERS = {
    "attention": "a generic vector e_0 plus attention over the user's profile, asked by each token of the response"
    " (and a vector of their own for users of the training set)",
    "identity": "a generic vector e_0 plus a vector of their own for users of the training set (baseline)",
    "text": "the profile stands in the backbone's input (baseline)",
    "generic": "no user at all (baseline)",
}


def prmu_card(recipe: Recipe, name: str, figures: Mapping[str, float]) -> str:
    """README.md of the stage's PRMU folder. `figures`: prmu.evaluate's, as the stage found them."""
    stage = recipe.stages[name]
    assert isinstance(stage, PrmuStage)
    data = "the embedded world" if recipe.data.lamp_dir is None else f"LaMP files ({', '.join(recipe.data.tasks)})"
    rows = [
        ("pairs of users that training shows, new questions", "seen/accuracy", "seen/user_macro"),
        ("pairs of users that training never shows", "unseen/accuracy", "unseen/user_macro"),
    ]
    controls = [
        ("without the user (e_0 only)", "unseen/generic"),
        ("written for another user's profile, scored for the right one", "unseen/cross_profile"),
        ("the same pairs, scored for a third user", "unseen/shuffled"),
    ]

    def shown(key: str) -> str:
        return f"{figures[key]:.3f}" if key in figures else "not measured"

    return "\n".join(
        [
            "---", "library_name: tagpr_rl", "tags: [reward-model, personalization]", "---", "",
            f"# {recipe.name}: reward model `{name}`",
            "",
            "Scores a response to a question for one user: head(h) + <proj(h), e_u> over a Hugging Face backbone. The "
            f"user is {_USERS[stage.user]}.",
            "",
            f"Backbone: {stage.backbone or f'the weights of stage `{stage.init}`'}. Data: {data}; "
            f"{figures.get('train/pairs', 0):.0f} training pairs, {figures.get('steps', 0):.0f} steps of "
            f"{stage.batch_size} pairs. Loss: {stage.individual_weight:g} x Bradley-Terry for the user + "
            f"{1 - stage.individual_weight:.3g} x Bradley-Terry for e_0 + {stage.centre:g} x squared sum of scores.",
            "",
            "| pairwise accuracy | over pairs | over users |",
            "|---|---|---|",
            *(f"| {label} | {shown(key)} | {shown(macro)} |" for label, key, macro in rows),
            *(f"| {label} | {shown(key)} | |" for label, key in controls),
            "",
            "Where training stopped early, it chose the weights by the unseen users' accuracy, which is then a little "
            "too high; `launch.py prmu eval` measures on users that nothing was chosen on.",
            "",
            "## Use",
            "",
            "```python",
            "from pathlib import Path",
            "from tagpr_rl.prmu.serving.score import Scorer, ScoreRequest",
            'scorer = Scorer(Path("<this folder>"))',
            "scorer.score([ScoreRequest(user_id, profile_texts, question, response)])  # in [0, 1]",
            "```",
            "",
            f"0.5 is the mean raw score of the held-out pairs ({figures.get('score_mean', 0):.4g}), and one unit of "
            f"the logit their standard deviation ({figures.get('score_std', 1):.4g}). Unknown users and empty "
            "profiles are scored with e_0. Files: config.json, users.json, model.safetensors, backbone/, tokenizer/.",
            "",
        ]
    )  # fmt: skip
