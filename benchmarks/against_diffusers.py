"""PyTorch's side of a comparison: trains or samples a diffusers UNet2DModel when told to.

A program of its own for an interpreter that has torch and diffusers; `benchmarks.peer` starts it
and speaks with it in lines of JSON. The first line on stdin is the job, made by
`benchmarks.diffusers_job`; each line after that asks for one step. Each is answered by one line:
what was built, then seconds and peak memory of each step, or {"error": why} and the end.

Adam is the fused one, the moving average one `foreach` operation; on GPUs maps are channels-last,
cuDNN chooses its algorithms by trial, and float32 products are in TF32 as JAX's are there.
"""

import functools
import json
import os
import resource
import sys
import time


def main() -> None:
    """Answers on stdout, where nothing else may print; ends with stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        about, step, device = build(json.loads(sys.stdin.readline()))
        answer(about)
        for _ in sys.stdin:
            seconds = timed(step, device)
            # The threads of OpenMP spin for a while before they sleep.
            time.sleep(0.05)
            answer({"seconds": seconds, "peak_bytes": peak_bytes(device)})
    except Exception as error:  # whatever it is, the other side has to know
        answer({"error": f"{type(error).__name__}: {error}"})


def build(job: dict):
    """(description, a step as a function without arguments, device) of a job."""
    import diffusers
    import torch

    torch.manual_seed(0)
    cuda = torch.cuda.is_available() and job["platform"] == "gpu"
    if not cuda and job["platform"] != "cpu":
        raise RuntimeError(f"JAX runs on {job['platform']}, but torch {torch.__version__} cannot")
    device = torch.device("cuda" if cuda else "cpu")
    layout = torch.channels_last if cuda else torch.contiguous_format
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True

    model = diffusers.UNet2DModel(**job["unet"]).to(device, memory_format=layout)
    call = torch.compile(model) if job["mode"] == "compile" else model
    autocast = functools.partial(
        torch.autocast, device.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16"
    )
    make = {"train": train_step, "sample": sampler}[job["what"]]
    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "layout": str(layout).removeprefix("torch."),
        "float32_products": "tensorfloat32" if cuda else "float32",
    }
    return about, make(job, model, call, autocast, device, layout), device


def train_step(job: dict, model, call, autocast, device, layout):
    """One step of DDPM's simple loss: gradient, clipping, Adam, moving average of the weights."""
    import torch

    size, batch, parts = job["unet"]["sample_size"], job["batch_size"], job["accumulate"]
    alpha_bar = torch.cumprod(1 - torch.tensor(job["betas"], device=device), 0)
    alphas, sigmas = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    shape = (batch, job["unet"]["in_channels"], size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    pixels = pixels.contiguous(memory_format=layout)
    classes = job["unet"]["num_class_embeds"]
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if classes else None
    weights = list(model.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(
        weights, lr=job["learning_rate"], betas=job["adam_betas"], eps=job["eps"], fused=True
    )
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for micro in range(parts):
            x0 = pixels[micro::parts].float() / 127.5 - 1
            t = torch.randint(0, len(alphas), (len(x0),), device=device)
            noise = torch.randn_like(x0)
            x = alphas[t, None, None, None] * x0 + sigmas[t, None, None, None] * noise
            with autocast():
                eps = call(x, t, labels[micro::parts] if classes else None).sample
            loss = torch.nn.functional.mse_loss(eps.float(), noise)
            (loss / parts).backward()
        if job["clip_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(weights, job["clip_norm"])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - job["ema_decay"])

    return step


def sampler(job: dict, model, call, autocast, device, layout):
    """One batch of images by the scheduler of diffusers that the config's solver is."""
    import diffusers
    import torch

    schedulers = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}
    scheduler = schedulers[job["solver"]](trained_betas=job["betas"], **job["scheduler"])
    scheduler.set_timesteps(job["steps"])
    size, batch = job["unet"]["sample_size"], job["batch_size"]
    shape = (batch, job["unet"]["in_channels"], size, size)
    classes = job["unet"]["num_class_embeds"]
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if classes else None
    model.eval()

    def step() -> None:
        x = torch.randn(shape, device=device).contiguous(memory_format=layout)
        with torch.no_grad():
            for t in scheduler.timesteps.to(device):
                with autocast():
                    eps = call(x, t, labels).sample
                x = scheduler.step(eps.float(), t, x, **job["scheduler_step"]).prev_sample

    return step


def timed(step, device) -> float:
    """Seconds of one step, waited for."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    before = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - before


def peak_bytes(device) -> int:
    """Largest use of the device's memory, or of this process's where there is none."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
