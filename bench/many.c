/* The limit for many small fits: Levenberg-Marquardt by normal equations, written by hand for one model.

   REAL is float or double; MODEL is PEAK, height exp(-((x - center)/width)^2/2) + offset, or DECAY, a exp(-x/t) + c. Derivatives are
   written out, and what they have in common is summed once.

   fit_each makes one fit after the other, as most would write it: the compiler may use vectors along the rows of a fit. fit_lanes makes
   as many fits side by side as a vector has lanes; a lane whose fit has ended takes up the next one.

   Both end a fit when the gain that is left, g A^-1 g, is below `enough` of the variance of a residual, once that last step is taken. */

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

#define PEAK 0
#define DECAY 1

typedef REAL real;
#ifdef __AVX512F__
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / (int)sizeof(real))
typedef __typeof__(_Generic((real)0, float : (int32_t)0, double : (int64_t)0)) word;
typedef real vec __attribute__((vector_size(BYTES)));
typedef word bits __attribute__((vector_size(BYTES)));
#ifdef __x86_64__
#define AS_IT_IS(v) __asm__("" : "+x"(v)) /* keeps -ffast-math from taking (x + magic) - magic for x */
#else
#define AS_IT_IS(v) __asm__("" : "+w"(v))
#endif

#if MODEL == PEAK
#define P 4
#else
#define P 3
#endif
#define T (P * (P + 1) / 2)
#define AT(j, k) ((j) * ((j) + 1) / 2 + (k)) /* of a packed lower triangle */
#define BLOCK 2048                           /* fits whose errors are computed together */
#define FIRST_DAMPING ((real)1e-2)
#define MOST_DAMPING ((real)1e7)
#define TOLERATED ((real)1e-6) /* a sum of squares may rise by so much, relative: rounding */
#define REAL_MAX (sizeof(real) == 4 ? (real)FLT_MAX : (real)DBL_MAX)

/* ---- one fit after the other ------------------------------------------------------------------------------------------------------ */

/* The sum of squares at theta, returned; g = J^T r and A = J^T J. */
static real look(const real *x, const real *y, long n, const real *theta, real *g, real *A)
{
    real S = 0;
#if MODEL == PEAK
    const real a = theta[0], c = theta[1], b = theta[3], k = 1 / theta[2], s = a * k;
    real re = 0, rez = 0, reu = 0, r1 = 0, ee = 0, eez = 0, zz = 0, zu = 0, uu = 0, e1 = 0, z1 = 0, u1 = 0; /* zz is also of e and u */
    for (long i = 0; i < n; i++) {
        const real z = (x[i] - c) * k, e = exp(-z * z / 2), ez = e * z, u = ez * z, r = a * e + b - y[i];
        S += r * r, re += r * e, rez += r * ez, reu += r * u, r1 += r;
        ee += e * e, eez += e * ez, zz += ez * ez, zu += ez * u, uu += u * u, e1 += e, z1 += ez, u1 += u;
    }
    const real G[P] = {re, s * rez, s * reu, r1};
    const real N[T] = {ee, s * eez, s * s * zz, s * zz, s * s * zu, s * s * uu, e1, s * z1, s * u1, n};
#else
    const real a = theta[0], k = 1 / theta[1], c = theta[2], s = a * k * k;
    real re = 0, ru = 0, r1 = 0, ee = 0, eu = 0, uu = 0, e1 = 0, u1 = 0;
    for (long i = 0; i < n; i++) {
        const real e = exp(-x[i] * k), u = e * x[i], r = a * e + c - y[i];
        S += r * r, re += r * e, ru += r * u, r1 += r;
        ee += e * e, eu += e * u, uu += u * u, e1 += e, u1 += u;
    }
    const real G[P] = {re, s * ru, r1};
    const real N[T] = {ee, s * eu, s * s * uu, e1, s * u1, n};
#endif
    for (int j = 0; j < P; j++)
        g[j] = G[j];
    for (int i = 0; i < T; i++)
        A[i] = N[i];
    return S;
}

/* A = L D L^T, L below the diagonal with ones on it; the diagonal of the result holds 1/D. */
#define DECOMPOSE(type)                                                                                                             \
    for (int j = 0; j < P; j++) {                                                                                                   \
        type d = L[AT(j, j)];                                                                                                       \
        for (int k = 0; k < j; k++) {                                                                                               \
            type above = L[AT(j, k)];                                                                                               \
            for (int i = 0; i < k; i++)                                                                                             \
                above -= held[AT(j, i)] * L[AT(k, i)];                                                                              \
            held[AT(j, k)] = above;                                                                                                 \
            L[AT(j, k)] = above * L[AT(k, k)];                                                                                      \
            d -= above * L[AT(j, k)];                                                                                               \
        }                                                                                                                           \
        L[AT(j, j)] = 1 / d;                                                                                                        \
    }

/* delta = -A^-1 g, and left = g A^-1 g. */
#define SOLVE(type)                                                                                                                 \
    for (int j = 0; j < P; j++) {                                                                                                   \
        type part = -g[j];                                                                                                          \
        for (int k = 0; k < j; k++)                                                                                                 \
            part -= L[AT(j, k)] * delta[k];                                                                                         \
        delta[j] = part;                                                                                                            \
        left += part * part * L[AT(j, j)];                                                                                          \
    }                                                                                                                               \
    for (int j = P - 1; j >= 0; j--) {                                                                                              \
        delta[j] *= L[AT(j, j)];                                                                                                    \
        for (int k = j + 1; k < P; k++)                                                                                             \
            delta[j] -= L[AT(k, j)] * delta[k];                                                                                     \
    }

/* The diagonal of A^-1, from L and 1/D. */
#define DIAGONAL(type)                                                                                                              \
    for (int j = 0; j < P; j++) {                                                                                                   \
        type column[P];                                                                                                             \
        diagonal[j] = L[AT(j, j)];                                                                                                  \
        column[j] = L[AT(j, j)] - L[AT(j, j)] + 1;                                                                                  \
        for (int i = j + 1; i < P; i++) {                                                                                           \
            column[i] = -L[AT(i, j)];                                                                                               \
            for (int k = j + 1; k < i; k++)                                                                                         \
                column[i] -= L[AT(i, k)] * column[k];                                                                               \
            diagonal[j] += column[i] * column[i] * L[AT(i, i)];                                                                     \
        }                                                                                                                           \
    }

/* Results: theta and errors (P, count), sums of squares and steps (count); steps are negative where no minimum was found. */
void fit_each(const real *x, const real *Y, long n, long count, const real *starts, double enough, long most, real *theta, real *errors,
              real *sums, int *steps)
{
    for (long f = 0; f < count; f++) {
        const real *y = Y + f * n;
        real now[P], trial[P], g[P] = {0}, A[T] = {0}, new_g[P], new_A[T], sum = REAL_MAX, damping = FIRST_DAMPING;
        int looks = 0, ended = 0;
        for (int j = 0; j < P; j++)
            now[j] = trial[j] = starts[f * P + j];
        while (!ended && looks < most && damping < MOST_DAMPING) {
            const real new_sum = look(x, y, n, trial, new_g, new_A);
            looks++;
            int taken = looks == 1 || new_sum <= sum * (1 + TOLERATED);
            if (taken) {
                damping = looks == 1 ? damping : damping * (real)0.1;
                sum = new_sum;
                for (int j = 0; j < P; j++)
                    now[j] = trial[j], g[j] = new_g[j];
                for (int i = 0; i < T; i++)
                    A[i] = new_A[i];
            } else
                damping *= 10;
            real L[T], held[T], delta[P], left = 0;
            for (int i = 0; i < T; i++)
                L[i] = A[i];
            for (int j = 0; j < P; j++)
                L[AT(j, j)] *= 1 + damping;
            DECOMPOSE(real)
            SOLVE(real)
            for (int j = 0; j < P; j++)
                trial[j] = now[j] + delta[j];
            ended = taken && left <= (real)enough * sum / (n - P);
        }
        real L[T], held[T], diagonal[P];
        for (int i = 0; i < T; i++)
            L[i] = A[i];
        DECOMPOSE(real)
        DIAGONAL(real)
        for (int j = 0; j < P; j++) {
            theta[j * count + f] = ended ? trial[j] : now[j];
            errors[j * count + f] = sqrt(diagonal[j] * sum / (n - P));
        }
        sums[f] = sum;
        steps[f] = ended ? looks : -looks;
    }
}

/* ---- side by side ----------------------------------------------------------------------------------------------------------------- */

static inline vec all(real number) { return number - (vec){0}; }
static inline vec pick(bits which, vec yes, vec no) { return (vec)((which & (bits)yes) | (~which & (bits)no)); }
static inline vec low(vec a, vec b) { return pick(a < b, a, b); }
static inline vec high(vec a, vec b) { return pick(a > b, a, b); }

/* exp(x) to a unit in the last place or two: x = k ln 2 + r, a polynomial of r, and k goes into the exponent. */
static inline vec exponential(vec x)
{
    const int single = sizeof(real) == 4;
    const vec magic = all(single ? (real)12582912.0 : (real)6755399441055744.0);
    x = low(high(x, all(single ? -87 : -708)), all(single ? 88 : 709));
    vec k = x * (real)1.44269504088896341 + magic;
    AS_IT_IS(k);
    const vec whole = k - magic;
    vec r, q;
    if (single) {
        r = (x - whole * (real)0.693359375) + whole * (real)2.12194440e-4;
        q = all((real)1.39261761199355789e-3);
        q = q * r + (real)8.3631730745137109e-3;
        q = q * r + (real)4.1666554662050534e-2;
        q = q * r + (real)1.66665770255979882e-1;
    } else {
        r = (x - whole * (real)0.693147180369123816490) - whole * (real)1.90821492927058770002e-10;
        q = all((real)2.51003758325612337e-8);
        q = q * r + (real)2.76200758799833666e-7;
        q = q * r + (real)2.75572684803100255e-6;
        q = q * r + (real)2.48015213223686933e-5;
        q = q * r + (real)1.98412698630405453e-4;
        q = q * r + (real)1.38888889171967191e-3;
        q = q * r + (real)8.33333333333006445e-3;
        q = q * r + (real)4.16666666666241619e-2;
        q = q * r + (real)1.66666666666666675e-1;
    }
    q = q * r + (real)0.5;
    q = q * (r * r) + (r + 1);
    return (vec)((bits)q + ((bits)k << (single ? 23 : 52)));
}

/* What `look` does, for a fit in each lane; rows holds their data, [row][lane]. */
static inline vec look_at_all(const real *x, const vec *rows, long n, const vec *theta, vec *g, vec *A)
{
    vec S = {0};
#if MODEL == PEAK
    const vec a = theta[0], c = theta[1], b = theta[3], k = 1 / theta[2], s = a * k;
    vec re = {0}, rez = {0}, reu = {0}, r1 = {0}, ee = {0}, eez = {0}, zz = {0}, zu = {0}, uu = {0}, e1 = {0}, z1 = {0}, u1 = {0};
    for (long i = 0; i < n; i++) {
        const vec z = (x[i] - c) * k, e = exponential(z * z * (real)-0.5), ez = e * z, u = ez * z, r = a * e + (b - rows[i]);
        S += r * r, re += r * e, rez += r * ez, reu += r * u, r1 += r;
        ee += e * e, eez += e * ez, zz += ez * ez, zu += ez * u, uu += u * u, e1 += e, z1 += ez, u1 += u;
    }
    const vec G[P] = {re, s * rez, s * reu, r1};
    const vec N[T] = {ee, s * eez, s * s * zz, s * zz, s * s * zu, s * s * uu, e1, s * z1, s * u1, all(n)};
#else
    const vec a = theta[0], k = -1 / theta[1], c = theta[2], s = a * k * k;
    vec re = {0}, ru = {0}, r1 = {0}, ee = {0}, eu = {0}, uu = {0}, e1 = {0}, u1 = {0};
    for (long i = 0; i < n; i++) {
        const vec e = exponential(x[i] * k), u = e * x[i], r = a * e + (c - rows[i]);
        S += r * r, re += r * e, ru += r * u, r1 += r;
        ee += e * e, eu += e * u, uu += u * u, e1 += e, u1 += u;
    }
    const vec G[P] = {re, s * ru, r1};
    const vec N[T] = {ee, s * eu, s * s * uu, e1, s * u1, all(n)};
#endif
    memcpy(g, G, sizeof G);
    memcpy(A, N, sizeof N);
    return S;
}

typedef struct {
    vec now[P], trial[P], g[P], A[T], sum, damping, looks;
} State;

/* A fit's numbers go into a lane. */
static void take_up(State *state, vec *rows, int lane, const real *y, long n, const real *start)
{
    for (long i = 0; i < n; i++)
        ((real *)(rows + i))[lane] = y[i];
    for (int j = 0; j < P; j++)
        ((real *)(state->trial + j))[lane] = ((real *)(state->now + j))[lane] = start[j];
    ((real *)&state->sum)[lane] = REAL_MAX;
    ((real *)&state->damping)[lane] = FIRST_DAMPING;
    ((real *)&state->looks)[lane] = 0;
}

/* Errors of up to BLOCK fits, from their matrices, [number][fit]. */
static void find_errors(const real *matrices, long n, long count, const real *sums, real *errors, long stride)
{
    for (long f = 0; f < count; f += LANES) {
        vec L[T], held[T], diagonal[P], sum;
        for (int i = 0; i < T; i++)
            memcpy(L + i, matrices + i * BLOCK + f, BYTES);
        const long here = count - f < LANES ? count - f : LANES;
        memcpy(&sum, sums + f, here * sizeof(real));
        DECOMPOSE(vec)
        DIAGONAL(vec)
        for (int j = 0; j < P; j++) {
            vec error = diagonal[j] * sum / (real)(n - P);
            for (int lane = 0; lane < LANES; lane++)
                error[lane] = sqrt(error[lane]);
            memcpy(errors + j * stride + f, &error, here * sizeof(real));
        }
    }
}

static void fit_block(const real *x, const real *Y, long n, long count, const real *starts, double enough, long most, real *theta,
                      real *errors, real *sums, int *steps, long stride, vec *rows, real *matrices)
{
    State state;
    long fits[LANES], next = 0, active = 0;
    bits working = {0};
    for (int lane = 0; lane < LANES; lane++) {
        const long f = next < count ? next : 0; /* an idle lane repeats the first fit, in vain */
        fits[lane] = next < count ? next++ : -1;
        working[lane] = fits[lane] < 0 ? 0 : -1;
        active += fits[lane] >= 0;
        take_up(&state, rows, lane, Y + f * n, n, starts + f * P);
    }
    while (active) {
        vec g[P], A[T], L[T], held[T], delta[P], left = {0};
        const vec new_sum = look_at_all(x, rows, n, state.trial, g, A);
        const bits first = state.looks == 0, taken = first | (new_sum <= state.sum * (1 + TOLERATED));
        state.looks += 1;
        state.sum = pick(taken, new_sum, state.sum);
        state.damping *= pick(taken, pick(first, all(1), all((real)0.1)), all(10));
        for (int j = 0; j < P; j++) {
            state.now[j] = pick(taken, state.trial[j], state.now[j]);
            g[j] = state.g[j] = pick(taken, g[j], state.g[j]);
        }
        for (int i = 0; i < T; i++)
            L[i] = state.A[i] = pick(taken, A[i], state.A[i]);
        for (int j = 0; j < P; j++)
            L[AT(j, j)] *= 1 + state.damping;
        DECOMPOSE(vec)
        SOLVE(vec)
        for (int j = 0; j < P; j++)
            state.trial[j] = state.now[j] + delta[j];
        const bits ended = taken & (left <= state.sum * ((real)enough / (n - P)));
        const bits over = (ended | (state.damping >= MOST_DAMPING) | (state.looks >= (real)most)) & working;
        for (int lane = 0; lane < LANES; lane++) {
            if (!over[lane])
                continue;
            const long f = fits[lane];
            for (int j = 0; j < P; j++)
                theta[j * stride + f] = ended[lane] ? state.trial[j][lane] : state.now[j][lane];
            for (int i = 0; i < T; i++)
                matrices[i * BLOCK + f] = state.A[i][lane];
            sums[f] = state.sum[lane];
            steps[f] = ended[lane] ? (int)state.looks[lane] : -(int)state.looks[lane];
            if (next < count) {
                fits[lane] = next++;
                take_up(&state, rows, lane, Y + fits[lane] * n, n, starts + fits[lane] * P);
            } else {
                working[lane] = 0;
                active--;
            }
        }
    }
    find_errors(matrices, n, count, sums, errors, stride);
}

void fit_lanes(const real *x, const real *Y, long n, long count, const real *starts, double enough, long most, real *theta, real *errors,
               real *sums, int *steps)
{
    vec *rows = aligned_alloc(BYTES, n * sizeof(vec));
    real *matrices = aligned_alloc(BYTES, (T * BLOCK + LANES) * sizeof(real) / BYTES * BYTES + BYTES);
    for (long f = 0; f < count; f += BLOCK)
        fit_block(x, Y + f * n, n, count - f < BLOCK ? count - f : BLOCK, starts + f * P, enough, most, theta + f, errors + f, sums + f,
                  steps + f, count, rows, matrices);
    free(rows);
    free(matrices);
}
