/* Compares the logits of {{ clips | length }} clips with those of {{ reference }}: exit status 1 if they differ. */

#include <stdio.h>

#include "model.h"

#define CLIPS {{ clips | length }}
#define TOLERANCE {{ tolerance }}f

static const {{ stored_type }} clips[CLIPS][MODEL_INPUT] = {
{%- for clip in clips %}
    {
        {{ clip }}
    },
{%- endfor %}
};

static const float expected[CLIPS][MODEL_CLASSES] = {
{%- for logits in expected %}
    {
        {{ logits }}
    },
{%- endfor %}
};

static model_input clip[MODEL_INPUT];

int main(void)
{
    float logits[MODEL_CLASSES];
    float largest = 0.0f;
    int wrong = 0;
    for (int number = 0; number < CLIPS; number++) {
        int best = 0;
        for (int32_t i = 0; i < MODEL_INPUT; i++)
            clip[i] = clips[number][i]{{ " / 32768.0f" if kind == "waveform" else "" }};
        model_logits(clip, logits);
        for (int k = 0; k < MODEL_CLASSES; k++) {
            float difference = logits[k] - expected[number][k];
            if (difference < 0)
                difference = -difference;
            if (!(difference <= TOLERANCE)) /* so that NaN is wrong */
                wrong++;
            if (difference > largest)
                largest = difference;
            if (logits[k] > logits[best])
                best = k;
        }
        printf("clip %d: %s\n", number, model_classes[best]);
    }
    /* Integers: on a microcontroller, printing a float may take the heap or not work. */
    printf("largest difference of logits: %ld millionths (allowed: %ld)\n",
           (long)(1e6f * (largest < 1000.0f ? largest : 1000.0f)), (long)(1e6f * TOLERANCE));
    if (wrong) {
        printf("FAILED: %d logits differ\n", wrong);
        return 1;
    }
    printf("passed\n");
    return 0;
}
