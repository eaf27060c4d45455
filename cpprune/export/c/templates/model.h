/* A classifier of cpprune: one clip in, logits out. C99, one thread, no heap, no operating system. */

#ifndef CPPRUNE_MODEL_H
#define CPPRUNE_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MODEL_CLASSES {{ classes | length }}
#define MODEL_INPUT {{ input_size }} /* values of a clip: {{ layout }} */
{%- if sample_rate %}
#define MODEL_SAMPLE_RATE {{ sample_rate }} /* Hz */
{%- endif %}

typedef {{ input_type }} model_input; /* {{ range }} */

/* Names of the classes, in the order of the logits. */
extern const char *const model_classes[MODEL_CLASSES];

/* Compute the logits of a clip. The buffers that this needs, {{ "{:,}".format(ram) }} bytes, are static: one call at
 * a time. They lie where the macro MODEL_MEMORY says, such as __attribute__((section(".psram"))). */
void model_logits(const model_input clip[MODEL_INPUT], float logits[MODEL_CLASSES]);

#ifdef __cplusplus
}
#endif

#endif
