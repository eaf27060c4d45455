/* From a clip to the features of the network, and through it. */

#include "model.h"

#ifndef MODEL_MEMORY
#define MODEL_MEMORY
#endif

{% set shape = input_shape | join("][") -%}
void model_network(const float features[1][{{ shape }}], float logits[1][MODEL_CLASSES], float *work);
{% if spec -%}
void model_front_end(const float frame[1][{{ spec.n_fft }}], float log_mel[1][1][{{ spec.n_mels }}], float *work);
{% endif %}
const char *const model_classes[MODEL_CLASSES] = {
{%- for name in classes %}
    {{ name }},
{%- endfor %}
};

MODEL_MEMORY static float work[{{ [work, 1] | max }}]; /* of the front end, then of the network */
{%- if kind != "features" %}
MODEL_MEMORY static float features[1][{{ shape }}];
{%- endif %}
{%- if spec %}
MODEL_MEMORY static float frame[1][{{ spec.n_fft }}];
MODEL_MEMORY static float log_mel[1][1][{{ spec.n_mels }}];

/* Sample i of the clip after pre-emphasis; before its begin and after its end, the clip is reflected. */
static float sample(const model_input *clip, int32_t i)
{
    const int32_t length = MODEL_INPUT - {{ 1 if spec.pre_emphasis else 0 }};
    if (i < 0)
        i = -i;
    if (i >= length)
        i = 2 * (length - 1) - i;
{%- set scaled = "clip[%s] / 32768.0f" if kind == "int16" else "clip[%s]" %}
{%- if spec.pre_emphasis %}
    return {{ scaled % "i + 1" }} - {{ spec.pre_emphasis }}f * ({{ scaled % "i" }});
{%- else %}
    return {{ scaled % "i" }};
{%- endif %}
}
{%- endif %}

void model_logits(const model_input clip[MODEL_INPUT], float logits[MODEL_CLASSES])
{
{%- if kind == "features" %}
    model_network((const float (*)[{{ shape }}])clip, (float (*)[MODEL_CLASSES])logits, work);
{%- elif spec %}
    for (int32_t n = 0; n < {{ input_shape[2] }}; n++) {
        for (int32_t i = 0; i < {{ spec.n_fft }}; i++)
            frame[0][i] = sample(clip, n * {{ spec.hop }} + i - {{ spec.n_fft // 2 }});
        model_front_end((const float (*)[{{ spec.n_fft }}])frame, log_mel, work);
        for (int32_t f = 0; f < {{ spec.n_mels }}; f++)
            features[0][0][f][n] = log_mel[0][0][f];
    }
{%- else %}
    float *pixels = &features[0][0][0][0];
    for (int32_t i = 0; i < MODEL_INPUT; i++)
        pixels[i] = clip[i] / 255.0f;
{%- endif %}
{%- if kind != "features" %}
    model_network((const float (*)[{{ shape }}])features, (float (*)[MODEL_CLASSES])logits, work);
{%- endif %}
}
