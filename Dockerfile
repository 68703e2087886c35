# blip_recipe for machines with NVIDIA GPUs. The wheels of torch bring CUDA; the host needs the driver and the NVIDIA
# Container Toolkit. /work is your folder, with recipes, data and outputs; /cache keeps what is downloaded.
#
#   docker build --tag blip-recipe .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --env HF_TOKEN \
#       --volume "$PWD:/work" --volume blip-cache:/cache blip-recipe finetune recipes/coco_lora.json
FROM python:3.13-slim

# `torch_compile` needs a C compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# The dependencies are a layer of their own: they change less often than the code.
COPY requirements.txt /src/
RUN pip install --no-cache-dir --requirement /src/requirements.txt

COPY LICENSE README.md pyproject.toml /src/
COPY blip_recipe /src/blip_recipe
COPY model_cards /src/model_cards
COPY recipes /src/recipes
RUN pip install --no-cache-dir --no-deps /src

# Anybody may write there, so that `--user` works.
RUN mkdir --mode 1777 /cache
ENV HF_HOME=/cache/huggingface BLIP_RECIPE_CACHE=/cache/blip_recipe HOME=/tmp
WORKDIR /work
ENTRYPOINT ["blip-recipe"]
CMD ["--help"]
