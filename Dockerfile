FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kclf kclf
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
RUN useradd --create-home kclf
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && wheel=$(ls /wheels/*.whl) && pip install --no-cache-dir "$wheel[serve,lite]"
USER kclf
EXPOSE 8000
ENTRYPOINT ["kclf", "serve", "/run/classifier", "--host", "0.0.0.0"]
