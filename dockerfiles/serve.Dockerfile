# serve: base, and vLLM with all that it requires.
#
# `envbuilder image --out DIR --engine docker` (or buildah) lays the folders named here out as the build context, one
# tar for each layer that it writes itself, and appends the variables, labels, user and command of the target. To
# extend an image, start FROM it instead (docs/images.md); change this file to put something between its layers.
FROM scratch
ADD rootfs/*.tar /
ADD wheels/*.tar /
ADD own/*.tar /
