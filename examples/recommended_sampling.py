"""The model card's sampling, written out; a checkpoint's generation_config.json sets the same by default."""

import checkpoint
import longcat

RECOMMENDED = longcat.SamplingParams(
    repetition_penalty=1.06, temperature=0.7, top_p=0.95, top_k=4, max_tokens=120, seed=1
)


def main() -> None:
    with longcat.Engine(checkpoint.path()) as engine:
        prompt = "Once upon a time, there was a little girl named Lily."
        print(prompt + str(engine.generate(prompt, RECOMMENDED)))


if __name__ == "__main__":
    main()
