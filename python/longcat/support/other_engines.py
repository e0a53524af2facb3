"""Options of vLLM and SGLang without a counterpart here. Some are ignored, others refused unless neutral."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OtherOption:
    """One option of another engine, named like its flag without dashes.

    Args:
        takes_value: False for a switch.
        neutral: values that request what this engine does anyway; None: any value is accepted and ignored.
        remedy: what to use instead, for the message of a refusal.
    """

    name: str
    takes_value: bool
    neutral: tuple[str, ...] | None = None
    remedy: str = ""

    def check(self, shown: str, value: object = None) -> None:
        """Checks a use of the option.

        Args:
            shown: the option as the user wrote it: "--enable-lora", "enable_lora".
        Raises:
            ValueError: `value` requests what this engine does not do; the message has the remedy.
        """
        if self.neutral is None or value is False or str(value).lower() in self.neutral:
            return
        if not self.takes_value:
            raise ValueError(f"{shown} is not supported. {self.remedy}")
        expected = f"; expected {' or '.join(self.neutral)}" if self.neutral else " is not supported"
        raise ValueError(f"{shown} {value}{expected}. {self.remedy}")


_IGNORED_SWITCHES = """
    trust-remote-code enable-auto-tool-choice skip-server-warmup disable-log-requests enable-log-requests log-requests
    enforce-eager disable-cuda-graph enable-chunked-prefill no-enable-chunked-prefill enable-metrics
    disable-frontend-multiprocessing enable-expert-parallel enable-p2p-check disable-custom-all-reduce
    enable-torch-compile enable-mixed-chunk enable-request-id-headers enable-server-load-tracking
    enable-prompt-tokens-details enable-dp-attention enable-dp-lm-head enable-ep-moe enable-deepep-moe enable-eplb
    disable-async-output-proc use-v2-block-manager skip-tokenizer-init
    exclude-tools-when-tool-choice-none enable-flashinfer-allreduce-fusion disable-chunked-prefix-cache
    show-hidden-metrics-for-version disable-hybrid-kv-cache-manager enable-nccl-nvls disable-shared-experts-fusion
""".split()
_IGNORED_OPTIONS = """
    tool-call-parser reasoning-parser attention-backend prefill-attention-backend decode-attention-backend
    moe-runner-backend moe-a2a-backend deepep-mode sampling-backend grammar-backend guided-decoding-backend
    structured-outputs-config chat-template-content-format tokenizer-revision revision code-revision download-dir
    hf-token config-format model-impl cuda-graph-max-bs cuda-graph-sizes max-seq-len-to-capture compilation-config
    chunked-prefill-size max-prefill-tokens max-num-partial-prefills long-prefill-token-threshold
    num-scheduler-steps stream-interval schedule-conservativeness swap-space uvicorn-log-level log-level-http
    log-requests-level decode-log-interval max-log-len watchdog-timeout distributed-executor-backend worker-cls
    block-size page-size max-parallel-loading-workers prefix-caching-hash-algo limit-mm-per-prompt
    mm-processor-kwargs allowed-local-media-path allowed-media-domains tool-parser-plugin
    h11-max-incomplete-event-size nccl-port
    dist-timeout moe-dense-tp-size eplb-config numa-node
""".split()
_MERGE = "Merge the adapter into the checkpoint's weights."
_SPECULATIVE = 'Use --speculative-config \'{"method": "mtp", "num_speculative_tokens": 3}\'.'
_RANKS = "Start one process a rank with mpirun or torchrun."
_CONFIG = "Edit config.json of the checkpoint folder."
_DEFAULTS = "Send sampling fields with each request, or edit generation_config.json of the checkpoint folder."
_CACHE = "Use --kv-cache-memory, as 4GiB."
_TEXT = "The model generates text and nothing else."

# name -> (neutral values, remedy). None instead of values marks a switch.
_REFUSED: dict[str, tuple[str | None, str]] = {
    "pipeline-parallel-size": ("1", "Share layers by --tensor-parallel-size and --expert-parallel-size."),
    "pp-size": ("1", "Share layers by --tp and --ep."),
    "nnodes": ("1", _RANKS),
    "node-rank": ("0", _RANKS),
    "dist-init-addr": ("", _RANKS),
    "data-parallel-address": ("", _RANKS),
    "data-parallel-size-local": ("1", _RANKS),
    "api-server-count": ("1", "Start replicas by --data-parallel-size."),
    "headless": (None, _RANKS),
    "enable-lora": (None, _MERGE),
    "lora-modules": ("", _MERGE),
    "lora-paths": ("", _MERGE),
    "generation-config": ("auto", _DEFAULTS),
    "override-generation-config": ("{}", _DEFAULTS),
    "preferred-sampling-params": ("{}", _DEFAULTS),
    "sampling-defaults": ("model", _DEFAULTS),
    "cpu-offload-gb": ("0 0.0", "Use --ngram-placement host: the N-gram tables then stay in host memory."),
    "load-format": ("auto safetensors mmap", "Weights are safetensors; longcat make-checkpoint writes random ones."),
    "tokenizer-mode": ("auto hf fast", "The tokenizer is the folder's tokenizer.json."),
    "task": ("auto generate", _TEXT),
    "runner": ("auto generate", _TEXT),
    "convert": ("auto none", _TEXT),
    "is-embedding": (None, _TEXT),
    "hf-overrides": ("{}", _CONFIG),
    "json-model-override-args": ("{}", _CONFIG),
    "rope-scaling": ("{}", _CONFIG),
    "rope-theta": ("", _CONFIG),
    "num-gpu-blocks-override": ("", _CACHE),
    "max-total-tokens": ("", _CACHE),
    "scheduling-policy": ("fcfs", "Requests run in the order of arrival."),
    "schedule-policy": ("fcfs lpm", "Requests run in the order of arrival."),
    "speculative-model": ("", _SPECULATIVE),
    "num-speculative-tokens": ("", _SPECULATIVE),
    "speculative-algorithm": ("", _SPECULATIVE),
    "speculative-num-steps": ("", _SPECULATIVE),
    "speculative-eagle-topk": ("", _SPECULATIVE),
    "speculative-num-draft-tokens": ("", _SPECULATIVE),
    "speculative-draft-model-path": ("", _SPECULATIVE),
    "kv-transfer-config": ("{}", "Each server computes prompts and answers itself."),
    "disaggregation-mode": ("null", "Each server computes prompts and answers itself."),
    "enable-sleep-mode": (None, "End the process to free its memory."),
    "response-role": ("assistant", "Answers have the role assistant."),
    "logits-processors": ("[]", "Use token_mask or logit_bias of SamplingParams."),
    "pooler-config": ("", _TEXT),
    "return-tokens-as-token-ids": (None, "POST /detokenize gives the text of token ids."),
    "root-path": ("", "Let the proxy strip the path before it calls."),
    "middleware": ("", "Put it into a proxy before the server."),
    "allow-credentials": (None, "Pages send the key in the Authorization header."),
    "disable-fastapi-docs": (None, "Close /docs and /openapi.json in the proxy."),
    "ssl-cert-reqs": ("0", "Use --ssl-ca-certs to accept only clients with a certificate."),
    "uds": ("", "Use --host and --port."),
}

OTHER_OPTIONS: dict[str, OtherOption] = {
    **{name: OtherOption(name, False) for name in _IGNORED_SWITCHES},
    **{name: OtherOption(name, True) for name in _IGNORED_OPTIONS},
    **{
        name: OtherOption(name, neutral is not None, tuple((neutral or "").split()), remedy)
        for name, (neutral, remedy) in _REFUSED.items()
    },
}

# Names of number formats in other engines, and ours.
_FORMATS = {"bfloat16": "bf16", "float32": "f32", "float": "f32", "fp32": "f32", "fp8_e4m3": "fp8"}


def format_name(name: str, value: str) -> str:
    """Our name of a number format for `dtype` and `kv_cache_dtype`. Unknown names are returned unchanged.

    Raises:
        ValueError: the format is f16, which this engine does not support.
    """
    if value in ("half", "float16", "fp16", "f16"):
        raise ValueError(f'{name}="{value}"; expected auto, f32 or bf16. Nothing is kept in f16: use bf16')
    return _FORMATS.get(value, value)
