/* Names the class of continuous audio: reads int16 samples, little-endian, mono, {{ "{:,}".format(sample_rate) }} Hz.
 *
 *     arecord -q -f S16_LE -r {{ sample_rate }} -c 1 -t raw | ./model-listen
 *
 * On a microcontroller, a buffer that a DMA controller fills takes the place of standard input. */

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model.h"

#ifndef HOP /* samples from one window to the next */
#define HALF_SECOND ((MODEL_SAMPLE_RATE + 1) / 2)
#define HOP (HALF_SECOND < MODEL_INPUT ? HALF_SECOND : MODEL_INPUT)
#endif
#ifndef SMOOTHING
#define SMOOTHING 1.0f /* time constant of the moving average of the probabilities, in seconds */
#endif
#if HOP < 1 || HOP > MODEL_INPUT
#error "HOP must be from 1 sample to a window"
#endif

static model_input window[MODEL_INPUT];
static float smoothed[MODEL_CLASSES];

/* Move the window on by a number of samples; return 0 at the end of the audio. */
static int hear(int32_t number)
{
    memmove(window, window + number, (size_t)(MODEL_INPUT - number) * sizeof window[0]);
    for (int32_t i = MODEL_INPUT - number; i < MODEL_INPUT; i++) {
        int low = getchar(), high = getchar();
        if (high == EOF)
            return 0;
        window[i] = (int16_t)(high << 8 | low){{ " / 32768.0f" if kind == "waveform" else "" }};
    }
    return 1;
}

/* Let a window count in the moving average. */
static void smooth(const float logits[MODEL_CLASSES], float kept)
{
    float largest = logits[0], sum = 0.0f;
    for (int k = 1; k < MODEL_CLASSES; k++)
        largest = fmaxf(largest, logits[k]);
    for (int k = 0; k < MODEL_CLASSES; k++)
        sum += expf(logits[k] - largest);
    for (int k = 0; k < MODEL_CLASSES; k++)
        smoothed[k] = kept * smoothed[k] + (1.0f - kept) * expf(logits[k] - largest) / sum;
}

int main(void)
{
    float logits[MODEL_CLASSES];
    float kept = 0.0f; /* nothing comes before the first window */
    long long heard = 0;
    for (int32_t number = MODEL_INPUT; hear(number); number = HOP) {
        int best = 0;
        heard += number;
        model_logits(window, logits);
        smooth(logits, kept);
        kept = expf(-(float)HOP / MODEL_SAMPLE_RATE / SMOOTHING);
        for (int k = 1; k < MODEL_CLASSES; k++)
            if (smoothed[k] > smoothed[best])
                best = k;
        printf("%lld.%02lld s  %s %ld%%\n", heard / MODEL_SAMPLE_RATE,
               heard % MODEL_SAMPLE_RATE * 100 / MODEL_SAMPLE_RATE, model_classes[best],
               (long)(100.0f * smoothed[best] + 0.5f));
        fflush(stdout);
    }
    return 0;
}
