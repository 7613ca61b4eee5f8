"""Pure tensor functions on boxes, regions and masks, batched over images.

`boxes` has the arithmetic and the IoU family, `nms` greedy suppression, `soft_nms` and `box_voting` what may
stand in its place, `roi_align` region pooling over feature levels, `ps_roi` pooling by bins with maps of
their own, `deform_conv` convolution at moved taps, `masks` cropped instance masks. What the compiler cannot
express is a `torch.library.custom_op` with a fake kernel, so that it stays one node of a compiled or exported
graph. `doctor` compares each fast path with its plain reference.
"""
