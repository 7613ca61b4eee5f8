# docker build --tag boxwright:latest .
# docker run --gpus all --shm-size=16g --volume ./datasets:/datasets --volume ./runs:/runs boxwright:latest \
#     boxwright train fcos_r50_fpn_1x data.root=/datasets/coco out=/runs/coco
FROM python:3.12-slim

# PyTorch's package brings CUDA; the host brings the driver.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# Triton builds its kernels' launchers with a C compiler when they are first used, torch.compile with that of C++.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# The dependencies first: they change less often than the package.
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
RUN mkdir boxwright && echo '__version__ = "0"' > boxwright/__init__.py \
    && pip install '.[demo,track]' && pip uninstall --yes boxwright
COPY boxwright boxwright
RUN pip install --no-deps '.[demo,track]'

# Caches of data sets, pretrained weights and kernels, and the working folder, are whoever's who runs it.
ENV BOXWRIGHT_CACHE=/cache/boxwright TORCH_HOME=/cache/torch HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor
RUN mkdir -p /cache /runs && chmod 777 /cache /runs
WORKDIR /runs
CMD ["boxwright", "--help"]
